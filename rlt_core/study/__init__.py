"""Claims as code: written down with their seeds, frozen before those run, verified from tables.

`claims`: what a study file says; `freeze`: its configs and keys, fixed before its seeds run;
`evidence`: answers and rewards by variant and seed; `verdicts`: the rules; `bundle`: a folder that
holds all that a verdict rests on.
"""
