"""The report of a run: tables, figures and sample texts from the artifacts that it made.

`gather` reads the artifacts and computes, `report.md.jinja` is the page, `tables` has its rows and
cells, `figures` draws, `render` writes the files. `terminal` shows a finished report and imports
neither numpy nor matplotlib.
"""
