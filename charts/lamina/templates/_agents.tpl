{{/* The agents of one class: (list $ settings taken). `taken` is what the labels of its
nodes must not be. */}}
{{- define "lamina.agents" -}}
{{- $root := index . 0 -}}
{{- $settings := index . 1 -}}
{{- $class := $settings.name -}}
{{- $name := printf "%s-agent" $root.Release.Name -}}
{{- if ne $class "default" }}{{ $name = printf "%s-%s" $name $class }}{{ end -}}
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ $name }}
  {{- include "lamina.metadata" (list $root "agent" (dict "serving.lamina.dev/agent-class" $class)) | nindent 2 }}
spec:
  selector:
    matchLabels:
      {{- include "lamina.selector" $root | nindent 6 }}
      app.kubernetes.io/component: agent
      serving.lamina.dev/agent-class: {{ $class }}
  updateStrategy:
    {{- if or $settings.hostPort $settings.restHostPort $settings.cache.hostPath (eq (toString $settings.maxSurge) "0") }}
    # Two agents of a node cannot share a port or a folder of it.
    rollingUpdate: {maxUnavailable: {{ $settings.maxUnavailable }}}
    {{- else }}
    rollingUpdate: {maxSurge: {{ $settings.maxSurge }}, maxUnavailable: 0}
    {{- end }}
  template:
    metadata:
      {{- include "lamina.podMetadata" (list $root "agent" $settings "9091" $class) | nindent 6 }}
    spec:
      serviceAccountName: {{ $root.Release.Name }}-agent
      # Slices move off for 15 s at most, and requests in flight are answered for 25 s.
      terminationGracePeriodSeconds: 45
      {{- include "lamina.pullSecrets" $root | nindent 6 }}
      {{- with $settings.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
              - matchExpressions:
                  - key: kubernetes.io/os
                    operator: In
                    values: [linux]
                  - key: kubernetes.io/arch
                    operator: In
                    values: {{- toYaml $settings.architectures | nindent 22 }}
                  {{- with index . 2 }}
                  {{- toYaml . | nindent 18 }}
                  {{- end }}
      {{- with $settings.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- include "lamina.priority" (list $root $settings) | nindent 6 }}
      securityContext: {{- include "lamina.podSecurity" $root | nindent 8 }}
      containers:
        - name: agent
          image: {{ include "lamina.image" (list $root $settings.image) }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args:
            - run
            - --node-name=$(NODE_NAME)
            - --token-file=/var/run/secrets/lamina/token
            - --pod-ip=$(POD_IP)
            - {{ printf "--listen-address=%s" $settings.listenAddress | quote }}
            - --port={{ $settings.port }}
            - --rest-port={{ $settings.restPort }}
            - --admin-port=9091
            - --cache-dir=/var/cache/lamina
            - --cache-size={{ $settings.cache.sizeLimit }}
            - --log-format={{ $root.Values.logFormat }}
            - --auth={{ eq $root.Values.auth.mode "apiKey" | ternary "api-key" $root.Values.auth.mode }}
            - --default-namespace={{ $root.Values.auth.defaultNamespace }}
            {{- if eq $root.Values.auth.mode "token" }}
            - --token-audience={{ $root.Values.auth.tokenAudience }}
            {{- end }}
            {{- with $root.Values.auth.requestsPerSecond }}
            - --requests-per-second={{ int . }}
            {{- end }}
            - --workers={{ $settings.engine.workers }}
            {{- include "lamina.tlsArgs" $root | nindent 12 }}
            {{- with $root.Values.agent.front.tls }}
            {{- if eq .mode "auto" }}
            - --front-tls=auto
            {{- with include "lamina.frontNames" $root }}
            - {{ printf "--front-names=%s" . | quote }}
            {{- end }}
            {{- else if eq .mode "secret" }}
            - --front-tls=given
            - --front-tls-dir=/var/run/lamina/front
            {{- end }}
            {{- if and (ne .mode "none") (not .required) }}
            - --front-tls-optional
            {{- end }}
            {{- end }}
            {{- with $settings.engine.workerMemoryLimit }}
            - --worker-memory-limit={{ . }}
            {{- end }}
            {{- if $settings.allowUnsandboxed }}
            - --allow-unsandboxed
            {{- end }}
            {{- with $settings.sources }}
            {{- range .allow }}
            - --source-allow={{ . }}
            {{- end }}
            {{- if .denyPrivate }}
            - --source-deny-private
            {{- end }}
            - --source-size-limit={{ .sizeLimit }}
            - --source-timeout-seconds={{ .timeoutSeconds }}
            - --source-hub={{ .hub }}
            {{- if .caConfigMap }}
            - --source-ca-file=/etc/lamina/source-ca/ca.crt
            {{- end }}
            {{- if .useProxy }}
            - --source-proxy
            {{- end }}
            {{- range .plainRegistries }}
            - --source-plain-registry={{ . }}
            {{- end }}
            {{- if .hostPath }}
            - --source-files=/var/lib/lamina/sources/files
            {{- end }}
            {{- if .claims }}
            - --source-claims=/var/lib/lamina/sources/claims
            {{- end }}
            {{- end }}
            {{- with $settings.extraArgs }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          env: {{- include "lamina.env" (list $root $settings) | nindent 12 }}
          ports:
            - name: inference
              containerPort: {{ $settings.port }}
              {{- with $settings.hostPort }}
              hostPort: {{ . }}
              {{- end }}
            {{- with $settings.restPort }}
            - name: rest
              containerPort: {{ . }}
              {{- with $settings.restHostPort }}
              hostPort: {{ . }}
              {{- end }}
            {{- end }}
            - {name: admin, containerPort: 9091}
          livenessProbe:
            httpGet: {path: /livez, port: admin}
            periodSeconds: 10
            timeoutSeconds: 5
          # Until this passes, the node's clients have nobody to ask.
          readinessProbe:
            httpGet: {path: /readyz, port: admin}
            periodSeconds: 1
            timeoutSeconds: 5
            failureThreshold: 5
          resources: {{- toYaml $settings.resources | nindent 12 }}
          securityContext: {{- include "lamina.containerSecurity" $root | nindent 12 }}
          volumeMounts:
            - {name: cache, mountPath: /var/cache/lamina}
            - {name: operator-token, mountPath: /var/run/secrets/lamina, readOnly: true}
            - {name: tmp, mountPath: /tmp}
            {{- if eq $root.Values.agent.front.tls.mode "secret" }}
            - {name: front, mountPath: /var/run/lamina/front, readOnly: true}
            {{- end }}
            {{- with $settings.sources }}
            {{- if .caConfigMap }}
            - {name: source-ca, mountPath: /etc/lamina/source-ca, readOnly: true}
            {{- end }}
            {{- if .hostPath }}
            - {name: source-files, mountPath: /var/lib/lamina/sources/files, readOnly: true}
            {{- end }}
            {{- range .claims }}
            - {name: claim-{{ . }}, mountPath: /var/lib/lamina/sources/claims/{{ . }}, readOnly: true}
            {{- end }}
            {{- end }}
      volumes:
        # For the operator alone: of no use at the API server, nor the pod's other token
        # here. It ends with the pod.
        - name: operator-token
          projected:
            sources:
              - serviceAccountToken: {audience: lamina-operator, expirationSeconds: 3600, path: token}
        - name: cache
          {{- if $settings.cache.hostPath }}
          hostPath: {path: {{ $settings.cache.hostPath | quote }}, type: Directory}
          {{- else }}
          emptyDir: {sizeLimit: {{ $settings.cache.sizeLimit }}}
          {{- end }}
        - name: tmp
          emptyDir: {}
        {{- with $root.Values.agent.front.tls }}
        {{- if eq .mode "secret" }}
        - name: front
          secret:
            secretName: {{ .secretName }}
            defaultMode: 0440
            items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
        {{- end }}
        {{- end }}
        {{- with $settings.sources }}
        {{- with .caConfigMap }}
        - name: source-ca
          configMap: {name: {{ . }}}
        {{- end }}
        {{- with .hostPath }}
        - name: source-files
          hostPath: {path: {{ . | quote }}, type: Directory}
        {{- end }}
        {{- range .claims }}
        - name: claim-{{ . }}
          persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
        {{- end }}
        {{- end }}
{{- end }}
