"""What must hold before a model ships: checks, the policy they judge by, and what they found in many formats."""
