"""The --help formatter of every sub-command."""

from argparse import Action, ArgumentDefaultsHelpFormatter

__all__ = ["CommandHelp"]


class CommandHelp(ArgumentDefaultsHelpFormatter):
    """Help formatter that appends each option's default, unless the option has none or its help names it."""

    def _get_help_string(self, action: Action) -> str | None:
        nothing = action.default is None or action.default is False or action.default == []
        if nothing or "(default: " in (action.help or ""):
            return action.help
        return super()._get_help_string(action)
