"""Tests of camtrain.localization."""
