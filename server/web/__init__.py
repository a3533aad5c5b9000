"""Pages for the browser, as files: the playground and the API page. Stands on nothing."""
