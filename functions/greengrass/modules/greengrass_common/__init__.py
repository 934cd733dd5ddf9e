"""What Greengrass V1's core offered to its SDK; written afresh from what the SDK uses."""
