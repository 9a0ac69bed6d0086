# bash completion of cocoon. Made by src/cocoon/cli/completion.py from the commands' own tables.

_cocoon() {
    local route="" word waiting="" count=0 most=999 kind="none" choices="" flags="" before current candidate
    local -a given=() state=()
    COMPREPLY=()
    # COMP_WORDS is of no use: bash breaks words at '=' and ':' too, as in `--name=x` and `debian:13`.
    before=${COMP_LINE:0:COMP_POINT}
    current=${before##*[[:space:]]}
    read -ra given <<<"${before%"$current"}"
    for word in "${given[@]:1}"; do
        if [[ -n $waiting ]]; then
            [[ $waiting == --root-dir ]] && state=(--root-dir "$word")
            [[ $waiting == --config ]] && state=(--config)
            waiting=""
            continue
        fi
        case $word in
            --root-dir=*) state=("$word") ;;
            --*=*) ;;
            --config | --root-dir | --run-dir | --log-dir | --dns | --output | --name | --file | --reference | --platform | --entrypoint | --cmd | --env | --env-file | --workdir | --user | --checksum | --modules | --subnet | --mtu | --escape-char | --cpu | --memory | --storage | --data-disk | --publish | --network | --bridge | --nics | --nic-rate | --disk-rate | --disk-iops | --queue-size | --hypervisor | --kernel | --volume | --password | --ssh-key | --user-data | --hostname | --timeout | --signal | --tail | -o | -o | -e | -w | -u | -m | -p | -v | -s | -n) waiting=$word ;;
            -*) ;;
            *)
                case "$route:$word" in
                    ":image") route="image" ;;
                    ":kernel") route="kernel" ;;
                    ":network") route="network" ;;
                    ":vm") route="vm" ;;
                    ":completion") route="completion" ;;
                    ":gc") route="gc" ;;
                    ":doctor") route="doctor" ;;
                    ":inspect") route="inspect" ;;
                    ":version") route="version" ;;
                    "image:build") route="image build" ;;
                    "image:export") route="image export" ;;
                    "image:import") route="image import" ;;
                    "image:inspect") route="image inspect" ;;
                    "image:list") route="image list" ;;
                    "image:pull") route="image pull" ;;
                    "image:rm") route="image rm" ;;
                    "image:tag") route="image tag" ;;
                    "kernel:add") route="kernel add" ;;
                    "kernel:default") route="kernel default" ;;
                    "kernel:inspect") route="kernel inspect" ;;
                    "kernel:list") route="kernel list" ;;
                    "kernel:rm") route="kernel rm" ;;
                    "network:create") route="network create" ;;
                    "network:inspect") route="network inspect" ;;
                    "network:list") route="network list" ;;
                    "network:rm") route="network rm" ;;
                    "vm:attach") route="vm attach" ;;
                    "vm:console") route="vm console" ;;
                    "vm:cp") route="vm cp" ;;
                    "vm:create") route="vm create" ;;
                    "vm:debug") route="vm debug" ;;
                    "vm:exec") route="vm exec" ;;
                    "vm:inspect") route="vm inspect" ;;
                    "vm:kill") route="vm kill" ;;
                    "vm:list") route="vm list" ;;
                    "vm:logs") route="vm logs" ;;
                    "vm:port") route="vm port" ;;
                    "vm:rm") route="vm rm" ;;
                    "vm:run") route="vm run" ;;
                    "vm:shell") route="vm shell" ;;
                    "vm:start") route="vm start" ;;
                    "vm:stop") route="vm stop" ;;
                    "vm:wait") route="vm wait" ;;
                    ":attach") route="vm attach" ;;
                    ":cp") route="vm cp" ;;
                    ":create") route="vm create" ;;
                    ":exec") route="vm exec" ;;
                    ":images") route="image list" ;;
                    ":kill") route="vm kill" ;;
                    ":logs") route="vm logs" ;;
                    ":ps") route="vm list" ;;
                    ":pull") route="image pull" ;;
                    ":rm") route="vm rm" ;;
                    ":rmi") route="image rm" ;;
                    ":tag") route="image tag" ;;
                    ":run") route="vm run" ;;
                    ":shell") route="vm shell" ;;
                    ":start") route="vm start" ;;
                    ":stop") route="vm stop" ;;
                    ":wait") route="vm wait" ;;
                    "vm:ls") route="vm list" ;;
                    "vm:ps") route="vm list" ;;
                    "image:ls") route="image list" ;;
                    "image:save") route="image export" ;;
                    "kernel:ls") route="kernel list" ;;
                    "network:ls") route="network list" ;;
                    ":port") route="vm port" ;;
                    *) ((count++)) ;;
                esac
                ;;
        esac
    done
    if [[ -z $waiting && $current == --*=* ]]; then
        waiting=${current%%=*}
        current=${current#*=}
    fi
    if [[ -n $waiting ]]; then
        case $waiting in
            --config) kind="file" ;;
            --root-dir) kind="directory" ;;
            --run-dir) kind="directory" ;;
            --log-dir) kind="directory" ;;
            --output | -o) kind="table json" ;;
            --file | -o) kind="file" ;;
            --env-file) kind="file" ;;
            --modules) kind="directory" ;;
            --network) kind="network" ;;
            --hypervisor) kind="auto cloud-hypervisor firecracker qemu" ;;
            --kernel) kind="kernel" ;;
            --volume | -v) kind="file" ;;
            --ssh-key) kind="file" ;;
            --user-data) kind="file" ;;
        esac
    elif [[ $current == -* ]]; then
        case $route in
            "completion") flags="--config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "gc") flags="--dry-run --output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "doctor") flags="--output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "inspect") flags="--output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "version") flags="--output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "image build") flags="--name --agent --list --quiet --output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "image export") flags="--file --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "image import") flags="--reference --platform --entrypoint --cmd --env --env-file --workdir --user --output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "image inspect") flags="--output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "image list") flags="--output --quiet --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "image pull") flags="--platform --force --checksum --output --quiet --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "image rm") flags="--force --output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "image tag") flags="--output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "kernel add") flags="--name --modules --default --output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "kernel default") flags="--output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "kernel inspect") flags="--output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "kernel list") flags="--output --quiet --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "kernel rm") flags="--output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "network create") flags="--subnet --mtu --isolated --output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "network inspect") flags="--output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "network list") flags="--output --quiet --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "network rm") flags="--output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "vm attach") flags="--tty --no-stdin --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "vm console") flags="--escape-char --read-only --resize --take --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "vm cp") flags="--follow-link --archive --quiet --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "vm create") flags="--name --cpu --memory --storage --data-disk --publish --allow-host --network --bridge --nics --nic-rate --disk-rate --disk-iops --queue-size --hypervisor --fc --windows --kernel --hugepages --insecure --volume --env --env-file --workdir --user --entrypoint --password --ssh-key --user-data --hostname --rm --output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "vm debug") flags="--name --cpu --memory --storage --data-disk --publish --allow-host --network --bridge --nics --nic-rate --disk-rate --disk-iops --queue-size --hypervisor --fc --windows --kernel --hugepages --insecure --volume --env --env-file --workdir --user --entrypoint --password --ssh-key --user-data --hostname --output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "vm exec") flags="--env --env-file --workdir --user --interactive --tty --detach --timeout --list --output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "vm inspect") flags="--output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "vm kill") flags="--signal --output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "vm list") flags="--output --quiet --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "vm logs") flags="--follow --tail --vmm --raw --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "vm port") flags="--output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "vm rm") flags="--force --output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "vm run") flags="--name --cpu --memory --storage --data-disk --publish --allow-host --network --bridge --nics --nic-rate --disk-rate --disk-iops --queue-size --hypervisor --fc --windows --kernel --hugepages --insecure --volume --env --env-file --workdir --user --entrypoint --password --ssh-key --user-data --hostname --interactive --tty --detach --foreground --rm --output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "vm shell") flags="--env --env-file --workdir --user --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "vm start") flags="--output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "vm stop") flags="--force --timeout --output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            "vm wait") flags="--output --config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
            *) flags="--config --root-dir --run-dir --log-dir --dns --verbose --help" ;;
        esac
        kind=$flags
    else
        case $route in
            "") choices="image kernel network vm completion gc doctor inspect version attach cp create exec images kill logs ps pull rm rmi tag run shell start stop wait port" ;;
            "image") choices="build export import inspect list pull rm tag ls save" ;;
            "kernel") choices="add default inspect list rm ls" ;;
            "network") choices="create inspect list rm ls" ;;
            "vm") choices="attach console cp create debug exec inspect kill list logs port rm run shell start stop wait ls ps" ;;
            "completion") kind="bash zsh fish" most=1 ;;
            "inspect") kind="vm" most=1 ;;
            "image build") kind="directory" most=1 ;;
            "image export") kind="image" most=1 ;;
            "image import") kind="file" most=999 ;;
            "image inspect") kind="image" most=1 ;;
            "image rm") kind="image" most=999 ;;
            "image tag") kind="image" most=2 ;;
            "kernel add") kind="file" most=1 ;;
            "kernel default") kind="kernel" most=1 ;;
            "kernel inspect") kind="kernel" most=1 ;;
            "kernel rm") kind="kernel" most=999 ;;
            "network inspect") kind="network" most=1 ;;
            "network rm") kind="network" most=999 ;;
            "vm attach") kind="vm" most=2 ;;
            "vm console") kind="vm" most=1 ;;
            "vm cp") kind="file" most=2 ;;
            "vm create") kind="image" most=1 ;;
            "vm debug") kind="image" most=1 ;;
            "vm exec") kind="vm" most=1 ;;
            "vm inspect") kind="vm" most=1 ;;
            "vm kill") kind="vm" most=999 ;;
            "vm logs") kind="vm" most=1 ;;
            "vm port") kind="vm" most=1 ;;
            "vm rm") kind="vm" most=999 ;;
            "vm run") kind="image" most=1 ;;
            "vm shell") kind="vm" most=1 ;;
            "vm start") kind="vm" most=999 ;;
            "vm stop") kind="vm" most=999 ;;
            "vm wait") kind="vm" most=999 ;;
        esac
        [[ -n $choices ]] && kind=$choices most=1
        ((count >= most)) && kind="none"
    fi
    case $kind in
        none) return ;;
        file) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        directory) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$current") ;;
        vm | image | kernel | network)
            while IFS= read -r candidate; do
                [[ $candidate == "$current"* ]] && COMPREPLY+=("$candidate")
            done < <(command cocoon __complete "$kind" "${state[@]}" 2>/dev/null)
            ;;
        *) mapfile -t COMPREPLY < <(compgen -W "$kind" -- "$current") ;;
    esac
    # Only what follows the last ':' of the word is replaced, where bash breaks words there.
    if [[ $current == *:* && $COMP_WORDBREAKS == *:* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${current%"${current##*:}"}"}")
    fi
}

complete -F _cocoon cocoon
