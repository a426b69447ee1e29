"""Fetch the Caffe ImageNet 2012 auxiliary files, and prove that they are the published ones."""
