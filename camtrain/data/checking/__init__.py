"""``camtrain check-data``: every picture is read once, before a training reads it."""
