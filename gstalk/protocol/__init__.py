"""The floor of bytes and numbers: beanstalkd's protocol, without a socket and without a clock."""
