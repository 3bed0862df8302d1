"""Pure torch: map arithmetic, the CAM network, backbones and their cuts."""
