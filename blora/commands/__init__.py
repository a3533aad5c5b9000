"""Commands that belong to neither training nor the server."""
