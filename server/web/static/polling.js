// Looks that repeat while their view is on the screen.

export const INTERVAL_S = 5;

/**
 * Return a function that takes whether a view is shown, and starts and stops its looks.
 *
 * look: called at once and every INTERVAL_S seconds while the view is shown in a visible tab.
 * stopped: called when the looks stop.
 */
export function polling(look, stopped = () => {}) {
  let [timer, shown] = [null, false];
  function schedule() {
    const wanted = shown && document.visibilityState === "visible";
    if (wanted && timer === null) {
      look();
      timer = setInterval(look, INTERVAL_S * 1000);
    } else if (!wanted && timer !== null) {
      clearInterval(timer);
      timer = null;
      stopped();
    }
  }
  document.addEventListener("visibilitychange", schedule);
  return (is) => { shown = is; schedule(); };
}
