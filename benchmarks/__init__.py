"""gstalk beside the raw limit of beanstalkd and beside other clients: `make bench`, or `python -m benchmarks --help`.

`cases` says what is measured, `rounds` measures it: each measurement in a process of its own (`child`), which is one of
the `clients` or `peers`, or the C program `raw`. `idle` and `footprint` measure what isn't a rate. `figures` holds the
results against what gstalk promises, `report` and `plot` show them.
"""
