"""Which edit: recipes tried by a cheap proxy, survivors by their answers, one picked by a written rule."""
