"""Opens the boxes of ``camtrain predict MODEL photos --boxes coco --output found`` in FiftyOne."""

import fiftyone as fo

dataset = fo.Dataset.from_dir(
    dataset_type=fo.types.COCODetectionDataset,
    data_path="photos",
    labels_path="found/boxes.json",
    label_types="detections",
    label_field="camtrain",
)
if __name__ == "__main__":
    fo.launch_app(dataset).wait()
