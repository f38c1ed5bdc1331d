"""From files to packed batches: samples, images, templates, documents, the plan, the loader."""
