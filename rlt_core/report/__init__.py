"""The report of a run: tables, figures and sample texts from the artifacts that it made.

`gather` reads the artifacts and computes, `page` and `tables` lay out the text, `figures` draws,
`render` writes the files. `terminal` shows a finished report and imports neither numpy nor
matplotlib.
"""
