"""The pictures of the page, one a module; the canvas turns them into bytes."""
