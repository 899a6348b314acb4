"""Results in a browser, with viser: a server that draws, and a page that shows."""
