"""The report of a run while it goes on: a page on this machine alone that follows the run's files.

    view       the folder as a page and as a state, computed only if somebody asks and a file has changed
    strip      the state of the run in a few words, at the top of the page
    server     the two over HTTP, on the loopback interface
    process    the same server in a process of its own, for a run that is being trained

Left out: any effect on the run, whose files are only read.
"""
