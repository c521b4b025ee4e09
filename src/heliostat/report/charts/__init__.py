"""Line charts and stacked bars as inline SVG, and which metrics are drawn together."""
