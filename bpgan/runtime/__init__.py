"""How programs meet machines and people: compilation, the loop, run directories, checkpoints.

A module imports only those below it::

    train                                       the loop, of one run or of a group
    run                                         one run on the host, while it is trained
    checkpoint  directory  log                  what a run keeps on the disk
    group                                       many runs as one program
    program                                     one run as a program
    distributed                                 processes and devices
    peers       events     images               other processes, TensorBoard, pictures
    anomaly  compile_cache  environment  limits  records  signals

``report`` reads what runs leave here, and nothing here knows it.
"""
