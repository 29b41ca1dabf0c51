{{- define "lamina.labels" -}}
app.kubernetes.io/name: lamina
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: lamina
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "lamina.selector" -}}
app.kubernetes.io/name: lamina
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels and annotations of an object: (list $ component extraLabels), the last two
may be empty. */}}
{{- define "lamina.metadata" -}}
{{- $root := index . 0 -}}
labels:
  {{- include "lamina.labels" $root | nindent 2 }}
  {{- with index . 1 }}
  app.kubernetes.io/component: {{ . }}
  {{- end }}
  {{- with index . 2 }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $root.Values.commonAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Image reference: (list $ .Values.operator.image). */}}
{{- define "lamina.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- with $root.Values.global.imageRegistry | default $root.Values.image.registry }}{{ . }}/{{ end -}}
{{ $image.repository }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- with $image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- define "lamina.pullSecrets" -}}
{{- with concat .Values.global.imagePullSecrets .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Labels and annotations of a pod: (list $ component settings metricsPort class), the
last may be empty. */}}
{{- define "lamina.podMetadata" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $settings := index . 2 -}}
labels:
  {{- include "lamina.labels" $root | nindent 2 }}
  app.kubernetes.io/component: {{ $component }}
  {{- with index . 4 }}
  serving.lamina.dev/agent-class: {{ . }}
  {{- end }}
  {{- with $settings.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  {{- $prometheus := dict "prometheus.io/scrape" "true" "prometheus.io/port" (index . 3) }}
  {{- toYaml (mergeOverwrite $prometheus (deepCopy $root.Values.commonAnnotations) (deepCopy $settings.podAnnotations)) | nindent 2 }}
{{- end }}

{{/* (list $ settings) */}}
{{- define "lamina.priority" -}}
{{- $root := index . 0 -}}
{{- $settings := index . 1 -}}
{{- if $settings.priorityClassName }}
priorityClassName: {{ $settings.priorityClassName }}
{{- else if $root.Values.priorityClass.create }}
priorityClassName: {{ $root.Release.Name }}
{{- end }}
{{- end }}

{{/* What the restricted Pod Security Standard asks of a container. */}}
{{- define "lamina.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "lamina.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* (list $ settings) */}}
{{- define "lamina.env" -}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: RUST_LOG
  value: {{ (index . 0).Values.logLevel | quote }}
{{- with (index . 1).extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Arguments of both components that say whether TLS is spoken. */}}
{{- define "lamina.tlsArgs" -}}
{{- if eq .Values.tls.mode "disabled" -}}
- --tls=disabled
{{- else -}}
- --tls={{ ternary "required" "optional" .Values.tls.required }}
- --tls-bundle={{ .Release.Name }}-ca
{{- end }}
{{- end }}

{{/* Names by which clients reach every agent, with commas between them. */}}
{{- define "lamina.frontNames" -}}
{{- $names := list }}
{{- if .Values.agent.service.enabled }}
{{- $name := printf "%s.%s" .Release.Name .Release.Namespace }}
{{- $names = list .Release.Name $name (printf "%s.svc" $name) (printf "%s.svc.cluster.local" $name) }}
{{- end }}
{{- /* Agents know the operator by that one. */ -}}
{{- join "," (without (concat $names .Values.agent.front.tls.names | uniq) "operator.lamina") }}
{{- end }}
