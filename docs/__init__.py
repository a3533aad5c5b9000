"""The documentation: its pages, and in `docs.site` what builds a web site of them."""
