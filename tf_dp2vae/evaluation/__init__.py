"""How useful a release is, measured by the field's protocols. What it computes from records stays on the private side."""
