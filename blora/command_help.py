"""How every sub-command's --help is written."""

from argparse import Action, ArgumentDefaultsHelpFormatter

__all__ = ["CommandHelp"]


class CommandHelp(ArgumentDefaultsHelpFormatter):
    """Adds an option's default to its help, unless there is none or the help names it already."""

    def _get_help_string(self, action: Action) -> str | None:
        nothing = action.default is None or action.default is False or action.default == []
        if nothing or "(default: " in (action.help or ""):
            return action.help
        return super()._get_help_string(action)
