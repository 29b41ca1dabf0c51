# What holds a pod's namespaces in the tests' cluster, where no image can be pulled.
# `programs` is a named build context.
FROM scratch
COPY --from=programs /pause /pause
USER 65535:65535
ENTRYPOINT ["/pause"]
