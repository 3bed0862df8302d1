"""What is measured on a split: classification, localization, mosaics."""
