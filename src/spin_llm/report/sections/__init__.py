"""The sections of the page: parts of results.json made ready to be read, one a module."""
