# Completion of medusa-trt and medusa-export, as `medusa-trt completion` printed it.

_medusa_trt_words() {  # sets words: what may stand after the verb or the flag $1
  case "$1" in
    # CASES
    *) return 1 ;;
  esac
}

_medusa_trt() {
  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words="" verb=""
  local -i first=1
  [[ "${COMP_WORDS[0]##*/}" == medusa-export ]] && verb="export" first=0
  while (( first > 0 && first < COMP_CWORD )); do
    _medusa_trt_words "$verb${verb:+ }${COMP_WORDS[first]}" || break
    verb="$verb${verb:+ }${COMP_WORDS[first]}"
    first+=1
    [[ "$words" == -* ]] && break
  done
  words=""
  if ! _medusa_trt_words "$verb $before"; then
    _medusa_trt_words "$verb"
    [[ "$words" == -* && "$word" != -* ]] && words=""  # a file, as the prompt of a verb
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}

complete -o default -F _medusa_trt medusa-trt medusa-export
