{{/* Ports of workers' pods; KV takes one port a socket, at most four. */}}
{{- define "baton.port" -}}
{{ get (dict "http" 8001 "control" 5701 "kv" 5711 "lastKv" 5714) . }}
{{- end }}

{{/* Where the pods of a node that share KV meet: this release's folder in the node's memory. */}}
{{- define "baton.kvStore" -}}
/run/kvstore/baton-{{ .Release.Namespace }}-{{ include "baton.name" . }}
{{- end }}

{{- define "baton.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "baton.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* What every Baton container has in its environment. */}}
{{- define "baton.environment" -}}
{{- range list "cache_key" "curve_public_key" "curve_secret_key" "redis_password" }}
- {name: BATON_{{ upper . }}_FILE, value: /run/secrets/{{ . }}}
{{- end }}
- name: BATON_REDIS_URL
  value: {{ if .Values.redis.enabled }}redis://{{ include "baton.name" . }}-redis:6379{{ else }}{{ .Values.redis.url | quote }}{{ end }}
- name: HF_HOME
  value: /models
{{- if .Values.huggingFace.secretName }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ .Values.huggingFace.secretName }}, key: {{ .Values.huggingFace.key }}}}
{{- end }}
{{- end }}

{{/* (dict "root" $ "role" … "secrets" (list …)) */}}
{{- define "baton.volumes" -}}
- name: settings
  configMap: {name: {{ include "baton.name" .root }}-{{ .role }}}
- name: secrets
  secret:
    secretName: {{ .root.Values.secretName }}
    items:
      {{- range .secrets }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
- name: tmp
  emptyDir: {}
- name: models
{{- if eq .root.Values.modelCache.kind "claim" }}
  persistentVolumeClaim:
    claimName: {{ .root.Values.modelCache.existingClaim | default (printf "%s-models" (include "baton.name" .root)) }}
{{- else }}
  emptyDir: {}
{{- end }}
{{- end }}

{{- define "baton.mounts" -}}
- {name: settings, mountPath: /etc/baton, readOnly: true}
- {name: secrets, mountPath: /run/secrets, readOnly: true}
- {name: tmp, mountPath: /tmp}
- {name: models, mountPath: /models}
{{- end }}

{{/* Settings of the chart and the user's own, as the YAML file that `--config` reads: (dict "own" … "user" …). */}}
{{- define "baton.settings" -}}
{{- range $name, $value := mergeOverwrite (deepCopy .user) .own }}
{{- if ne (toString $value) "" }}
{{ $name }}: {{ $value | toJson }}
{{- end }}
{{- end }}
{{- end }}

{{- define "baton.placement" -}}
{{- with .own.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .own.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .own.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "baton.selector" . | nindent 8 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "baton.image" -}}
image: {{ printf "%s%s:%s" .root.Values.image.prefix .own.repository (.own.tag | default .root.Chart.AppVersion) | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{- end }}

{{- define "baton.disruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "baton.name" .root }}-{{ .role }}
  labels: {{- include "baton.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ .own.maxUnavailable }}
  selector:
    matchLabels: {{- include "baton.selector" . | nindent 6 }}
{{- end }}
