"""The main job over a whole data set: stream, survive, resume, publish.

sources --> readers --> engine --> writer --> journal ==> publish, export

    sources      a folder, a list, a COCO file or a glob becomes a frozen list of names below one root
    reader       each reader thread owns a decoder process, which can crash or hang without harm to the run
    engine       pictures in, masks as RLE out; halves its batches when the device is out of memory
    flow         the three above and the writer, with bounded queues between them
    journal      one checked line a picture, cut back to the last good one at each start
    publish      the journal as annotations.json, results.json, summary.json and presence.png
    export       the journal decided anew and written in other formats, without the models

Nothing is imported here, so that a decoder process needn't load PyTorch.
"""
