"""WebDataset shards: a data set as a few large tar files, on disk or behind a URL.

An index lists what each shard holds and at which byte, so a sample is read like any file, by its
number: epochs are exact, and whatever holds for other sources (resuming, sharing among processes,
watching, leaving out) holds here. A shard behind a URL is fetched when the first of its samples is
wanted, into a folder of bounded size.
"""
