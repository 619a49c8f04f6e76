"""How programs meet machines and people: compilation, the loop, run directories, checkpoints.

A module imports only those in the lines below its own::

    train                                       the loop, of one run or of a group
    run                                         one run on the host, while it is trained
    checkpoint  directory                       what a run keeps on the disk
    distributed                                 processes and devices
    group  log  peers                           many runs as one program, the log, other processes
    program  images  events  anomaly  records   one run as a program, pictures, TensorBoard
    compile_cache  environment  limits  signals

``report`` reads what runs leave here, and nothing here knows it.
"""
