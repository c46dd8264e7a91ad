"""Many machines: Ray places, starts and replaces workers, and the run's journals say what is done.

    driver      `label_with_ray`: one process cuts the run, gives shards out, counts, publishes
    queue       which shard is next, and which are given up
    worker      the actor: it holds the models and labels one shard after another
    connection  starting Ray or joining a cluster; how many workers it has room for
    columns     `Labeller`, an actor class for pipelines of `ray.data`

Shards' numbers go to the workers, and counts come back; images and masks never pass through Ray. A
worker that dies costs what its shard's journal doesn't have yet: at most a batch of images. Ray is
imported when it is asked for: pip install "clip2sam[ray]".
"""
