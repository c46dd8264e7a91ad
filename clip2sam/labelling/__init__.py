"""The main job over a whole dataset: stream, survive, resume, publish.

source --> readers --> engine --> writer --> journal ==> publish, export

    run            one start of a run: what is checked, in which order; `label_dataset`
    flow           readers, engine and writer thread, with bounded queues between them
    readers        threads that have images decoded ahead of the model
    decode_worker  a process that decodes image files, and may crash or hang without harm to the run
    engine         images to presence scores and masks; smaller batches when memory runs out
    journal        one checked line an image; cut back to the last good one at each start
    lock           one process at a time, also on storage that several machines share
    storage        whether several machines can share a folder; files as they are there now
    manifest       the run's folder: what is labelled and how
    plan           a run in shards: its images cut into parts, once for all machines
    content        what a run has recorded, whole or in shards, one part in memory at a time
    changes        images that were changed or added since the run began
    fingerprint    all that the results depend on; another one is refused
    decide         which recorded masks are kept
    outputs        the formats that a run writes by itself, and the names of their files
    summary        the journal through exporters into files, and counted; `publish`
    merge          `merge_run`: finished shards, checked and published as a whole
    reviewing      `open_review`: a person's decisions, as lines of the journal
    export         `export_run`: decided anew, written in another format
    segment        the small sibling for a few images, without run or journal

Everything that `export_run` and `merge_run` need, and the decode worker, import no torch.
"""
