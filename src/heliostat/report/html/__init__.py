"""HTML: escaping, jinja2 templates, the style sheet and the script, and the frame of every page."""
