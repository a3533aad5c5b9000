// CSV as spreadsheets write it: quotes, separators inside quotes, line breaks inside quotes.

/** Return the text of a file's bytes, and whether it is UTF-8; any other file is read as Excel writes it by default. */
export function decoded(bytes) {
  try {
    return { text: new TextDecoder("utf-8", { fatal: true }).decode(bytes), isUtf8: true };
  } catch {
    return { text: new TextDecoder("windows-1252").decode(bytes), isUtf8: false };
  }
}

/**
 * Return the header and the rows of a CSV file, whose separator is the most frequent of the header.
 *
 * An apostrophe that writeCsv puts before a text is taken off.
 */
export function parseCsv(text) {
  const source = text.replace(/^\uFEFF/, "");
  const separator = separatorOf(source);
  const lines = [];
  let [line, cell, quoted, number, begun] = [[], "", false, 1, 1];
  const endCell = () => { line.push(unguarded(cell)); cell = ""; };
  const endLine = () => {
    endCell();
    if (line.length > 1 || line[0].trim() !== "") lines.push(checked(line, lines[0] ?? line, separator, begun));
    [line, begun] = [[], number + 1];
  };
  for (let i = 0; i < source.length; i++) {
    const character = source[i];
    if (source[i - 1] === "\n") number++;
    if (quoted) {
      if (character !== '"') cell += character;
      else if (source[i + 1] === '"') { cell += '"'; i++; }
      else quoted = false;
    } else if (character === '"' && cell === "") quoted = true;
    else if (character === separator) endCell();
    else if (character === "\n") endLine();
    else if (character !== "\r") cell += character;
  }
  if (cell !== "" || line.length > 0) endLine();
  if (quoted) throw new Error("The file ends inside a quoted cell: see whether it is complete.");
  if (lines.length < 2) throw new Error("The file has no rows: the first line has to name the columns, and rows follow.");
  const [head, ...rows] = lines;
  return { head: head.map((name, i) => name.trim() || `column ${i + 1}`), rows };
}

/** Return a row without empty cells past the header; other cells there come from a separator in a text, and throw. */
function checked(row, head, separator, number) {
  if (row.slice(head.length).every((cell) => cell.trim() === "")) return row.slice(0, head.length);
  const name = separator === "\t" ? "tab" : `"${separator}"`;
  const cells = head.length === 1 ? "the one cell" : `the ${head.length} cells`;
  throw new Error(
    `Line ${number}: got ${row.length} cells, expected ${cells} of the header. ` +
    `Put a text with a ${name} in it between double quotes.`);
}

function separatorOf(text) {
  const first = text.slice(0, text.indexOf("\n") < 0 ? text.length : text.indexOf("\n"));
  const counts = [",", ";", "\t"].map((separator) => [first.split(separator).length, separator]);
  return counts.sort((a, b) => b[0] - a[0])[0][1];
}

/**
 * Return a text with an apostrophe before it where a spreadsheet would run it as a formula.
 *
 * A text that begins with apostrophes and such a character gets one more, so that unguarded gives back every text.
 */
function guarded(text) {
  return /^'*[=+\-@\t]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
}

/** Return the text whose guarded form is `cell`, and any other cell as it is. */
function unguarded(cell) {
  const text = cell.slice(1);
  return cell.startsWith("'") && guarded(text) === cell ? text : cell;
}

/** Return a CSV file of lines of cells; texts are written as guarded, numbers and empty cells as they are. */
export function writeCsv(lines) {
  const quoted = (cell) => {
    const plain = cell === null || cell === undefined ? "" : String(cell);
    const text = typeof cell === "string" ? guarded(plain) : plain;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return lines.map((line) => `${line.map(quoted).join(",")}\r\n`).join("");
}
