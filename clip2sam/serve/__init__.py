"""Masks over HTTP: `clip2sam serve`.

request --> place in the queue --> decode worker --> batch --> masks --> COCO JSON

    server    the application: its routes, its errors as JSON, its end
    queue     bounded: places, the thread of the model, time limits, what waits and for how long
    together  requests with labels and settings of their own, encoded together
    asked     what a request may ask for: labels and settings, checked
    body      reading a body with a limit; a client that hangs up
    answer    a result as a COCO document, and the schema of it
    metrics   for Prometheus
    memory    the C library's allocator, told to give memory back

`label_studio` makes it an ML backend of Label Studio too, which sends addresses of images:

    label_studio_config  a project's labels, from its labelling interface
    label_studio_images  which addresses are fetched, and how
    label_studio_brush   masks in Label Studio's RLE
"""
