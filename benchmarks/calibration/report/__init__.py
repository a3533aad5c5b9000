"""From result files to a report: records -> study -> tables, verdicts and plots -> templates -> Markdown and HTML."""
