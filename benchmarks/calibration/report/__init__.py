"""Result files to a report: results -> study -> tables, verdicts and plots -> document -> Markdown and HTML."""
