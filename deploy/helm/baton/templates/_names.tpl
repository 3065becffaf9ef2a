{{- define "baton.name" -}}
{{ ternary .Release.Name (printf "%s-baton" .Release.Name) (contains "baton" .Release.Name) | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* What selects one role's pods: (dict "root" $ "role" "decode"). */}}
{{- define "baton.selector" -}}
app.kubernetes.io/name: baton
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "baton.labels" -}}
{{ include "baton.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- end }}

{{/* The name that clients send, under which workers and routers also meet in Redis. */}}
{{- define "baton.servedModelName" -}}
{{ .Values.servedModelName | default .Values.model | default "baton-demo" }}
{{- end }}
