"""Device shadows, kept on this core: documents of desired and reported state, as Greengrass V1 had them."""
