"""`python -m bench report`: what was measured, as a page with plots, and as the tables of README and docs."""
