"""What all APIs over HTTP have in common: the application, who may ask, and how answers come and are told."""
