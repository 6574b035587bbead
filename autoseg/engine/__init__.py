"""What runs inside a job: data, train, validate, infer, checkpoints. The room of torch and monai."""
