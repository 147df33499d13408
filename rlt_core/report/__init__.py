"""The report of a run: tables, figures and sample texts from the artifacts that it made.

`gather` reads the artifacts and computes, `answer` says what came out, `report.md.jinja` is the
page, `tables` has its rows and cells, `figures` and `svg` draw, `render` writes the files.
`terminal` shows a finished report and imports no numpy.
"""
