# fish completion of cocoon. Made by src/cocoon/cli/completion.py from the commands' own tables.

function __cocoon_walk -d 'Prints the command before the cursor, and how many words follow it'
    set -l route ''
    set -l count 0
    set -l waiting ''
    for word in (commandline -opc)[2..-1]
        if test -n "$waiting"
            set waiting ''
            continue
        end
        switch $word
            case --config --root-dir --run-dir --log-dir --dns --output --name --file --reference --platform --entrypoint --cmd --env --env-file --workdir --user --checksum --modules --subnet --mtu --escape-char --cpu --memory --storage --data-disk --publish --network --bridge --nics --nic-rate --disk-rate --disk-iops --queue-size --hypervisor --kernel --volume --password --ssh-key --user-data --hostname --timeout --signal --tail -o -o -e -w -u -m -p -v -s -n
                set waiting $word
            case '-*'
            case '*'
                switch "$route:$word"
                    case ':image'
                        set route 'image'
                    case ':kernel'
                        set route 'kernel'
                    case ':network'
                        set route 'network'
                    case ':vm'
                        set route 'vm'
                    case ':completion'
                        set route 'completion'
                    case ':gc'
                        set route 'gc'
                    case ':doctor'
                        set route 'doctor'
                    case ':inspect'
                        set route 'inspect'
                    case ':version'
                        set route 'version'
                    case 'image:build'
                        set route 'image build'
                    case 'image:export'
                        set route 'image export'
                    case 'image:import'
                        set route 'image import'
                    case 'image:inspect'
                        set route 'image inspect'
                    case 'image:list'
                        set route 'image list'
                    case 'image:pull'
                        set route 'image pull'
                    case 'image:rm'
                        set route 'image rm'
                    case 'image:tag'
                        set route 'image tag'
                    case 'kernel:add'
                        set route 'kernel add'
                    case 'kernel:default'
                        set route 'kernel default'
                    case 'kernel:inspect'
                        set route 'kernel inspect'
                    case 'kernel:list'
                        set route 'kernel list'
                    case 'kernel:rm'
                        set route 'kernel rm'
                    case 'network:create'
                        set route 'network create'
                    case 'network:inspect'
                        set route 'network inspect'
                    case 'network:list'
                        set route 'network list'
                    case 'network:rm'
                        set route 'network rm'
                    case 'vm:attach'
                        set route 'vm attach'
                    case 'vm:console'
                        set route 'vm console'
                    case 'vm:cp'
                        set route 'vm cp'
                    case 'vm:create'
                        set route 'vm create'
                    case 'vm:debug'
                        set route 'vm debug'
                    case 'vm:exec'
                        set route 'vm exec'
                    case 'vm:inspect'
                        set route 'vm inspect'
                    case 'vm:kill'
                        set route 'vm kill'
                    case 'vm:list'
                        set route 'vm list'
                    case 'vm:logs'
                        set route 'vm logs'
                    case 'vm:port'
                        set route 'vm port'
                    case 'vm:rm'
                        set route 'vm rm'
                    case 'vm:run'
                        set route 'vm run'
                    case 'vm:shell'
                        set route 'vm shell'
                    case 'vm:start'
                        set route 'vm start'
                    case 'vm:stop'
                        set route 'vm stop'
                    case 'vm:wait'
                        set route 'vm wait'
                    case ':attach'
                        set route 'vm attach'
                    case ':cp'
                        set route 'vm cp'
                    case ':create'
                        set route 'vm create'
                    case ':exec'
                        set route 'vm exec'
                    case ':images'
                        set route 'image list'
                    case ':kill'
                        set route 'vm kill'
                    case ':logs'
                        set route 'vm logs'
                    case ':ps'
                        set route 'vm list'
                    case ':pull'
                        set route 'image pull'
                    case ':rm'
                        set route 'vm rm'
                    case ':rmi'
                        set route 'image rm'
                    case ':tag'
                        set route 'image tag'
                    case ':run'
                        set route 'vm run'
                    case ':shell'
                        set route 'vm shell'
                    case ':start'
                        set route 'vm start'
                    case ':stop'
                        set route 'vm stop'
                    case ':wait'
                        set route 'vm wait'
                    case 'vm:ls'
                        set route 'vm list'
                    case 'vm:ps'
                        set route 'vm list'
                    case 'image:ls'
                        set route 'image list'
                    case 'image:save'
                        set route 'image export'
                    case 'kernel:ls'
                        set route 'kernel list'
                    case 'network:ls'
                        set route 'network list'
                    case ':port'
                        set route 'vm port'
                    case '*'
                        set count (math $count + 1)
                end
        end
    end
    echo $route
    echo $count
end

function __cocoon_at -d 'Whether the command is PATH, with fewer than MOST words after it'
    set -l walked (__cocoon_walk)
    test "$walked[1]" = "$argv[1]"; and begin
        test (count $argv) -lt 2; or test $walked[2] -lt $argv[2]
    end
end

function __cocoon_names -d 'Names of KIND in the store that this command line is about'
    set -l state
    set -l tokens (commandline -opc)
    if set -l at (contains -i -- --root-dir $tokens)
        set state --root-dir $tokens[(math $at + 1)]
    else if set -l at (contains -i -- --config $tokens)
        set state --config
    end
    command cocoon __complete $argv[1] $state 2>/dev/null
end

complete -c cocoon -f
complete -c cocoon -n '__cocoon_at "" 1' -a image -d 'Pull, import and remove images'
complete -c cocoon -n '__cocoon_at "" 1' -a kernel -d 'Manage the kernels that plain container images boot with'
complete -c cocoon -n '__cocoon_at "" 1' -a network -d 'Manage the networks that VMs are connected to'
complete -c cocoon -n '__cocoon_at "" 1' -a vm -d 'Create, run and manage virtual machines'
complete -c cocoon -n '__cocoon_at "" 1' -a completion -d 'Print the completion script of a shell'
complete -c cocoon -n '__cocoon_at "" 1' -a gc -d 'Free the space of what nothing needs any more'
complete -c cocoon -n '__cocoon_at "" 1' -a doctor -d 'Show what this host can do, and what to do about the rest'
complete -c cocoon -n '__cocoon_at "" 1' -a inspect -d 'Show everything about one VM or image'
complete -c cocoon -n '__cocoon_at "" 1' -a version -d 'Show the version'
complete -c cocoon -n '__cocoon_at "" 1' -a attach -d 'Join a command that runs in a VM'
complete -c cocoon -n '__cocoon_at "" 1' -a cp -d 'Copy files into a VM or out of it'
complete -c cocoon -n '__cocoon_at "" 1' -a create -d 'Prepare a VM without starting it'
complete -c cocoon -n '__cocoon_at "" 1' -a exec -d 'Run a command in a running VM'
complete -c cocoon -n '__cocoon_at "" 1' -a images -d 'List images'
complete -c cocoon -n '__cocoon_at "" 1' -a kill -d 'End VMs at once, or send their commands a signal'
complete -c cocoon -n '__cocoon_at "" 1' -a logs -d 'Show what a VM wrote to its console'
complete -c cocoon -n '__cocoon_at "" 1' -a ps -d 'List VMs'
complete -c cocoon -n '__cocoon_at "" 1' -a pull -d 'Fetch images from a registry'
complete -c cocoon -n '__cocoon_at "" 1' -a rm -d 'Remove VMs'
complete -c cocoon -n '__cocoon_at "" 1' -a rmi -d 'Remove images'
complete -c cocoon -n '__cocoon_at "" 1' -a tag -d 'Give an image another name'
complete -c cocoon -n '__cocoon_at "" 1' -a run -d 'Create a VM and start it'
complete -c cocoon -n '__cocoon_at "" 1' -a shell -d 'Open a shell in a running VM'
complete -c cocoon -n '__cocoon_at "" 1' -a start -d 'Start VMs'
complete -c cocoon -n '__cocoon_at "" 1' -a stop -d 'Stop VMs'
complete -c cocoon -n '__cocoon_at "" 1' -a wait -d 'Wait for VMs to end and print their exit statuses'
complete -c cocoon -n '__cocoon_at "" 1' -a port -d 'List the published ports of a VM'
complete -c cocoon -n '__cocoon_at "image" 1' -a build -d 'Build an image from a recipe'
complete -c cocoon -n '__cocoon_at "image" 1' -a export -d 'Write an image to an OCI archive'
complete -c cocoon -n '__cocoon_at "image" 1' -a import -d 'Make an image of an archive of images, of root file systems, or of a disk'
complete -c cocoon -n '__cocoon_at "image" 1' -a inspect -d 'Show everything about one image'
complete -c cocoon -n '__cocoon_at "image" 1' -a list -d 'List images'
complete -c cocoon -n '__cocoon_at "image" 1' -a pull -d 'Fetch images from a registry'
complete -c cocoon -n '__cocoon_at "image" 1' -a rm -d 'Remove images'
complete -c cocoon -n '__cocoon_at "image" 1' -a tag -d 'Give an image another name'
complete -c cocoon -n '__cocoon_at "image" 1' -a ls -d 'List images'
complete -c cocoon -n '__cocoon_at "image" 1' -a save -d 'Write an image to an OCI archive'
complete -c cocoon -n '__cocoon_at "kernel" 1' -a add -d 'Add a kernel'
complete -c cocoon -n '__cocoon_at "kernel" 1' -a default -d 'Show or set the default kernel'
complete -c cocoon -n '__cocoon_at "kernel" 1' -a inspect -d 'Show everything about one kernel'
complete -c cocoon -n '__cocoon_at "kernel" 1' -a list -d 'List kernels'
complete -c cocoon -n '__cocoon_at "kernel" 1' -a rm -d 'Remove kernels'
complete -c cocoon -n '__cocoon_at "kernel" 1' -a ls -d 'List kernels'
complete -c cocoon -n '__cocoon_at "network" 1' -a create -d 'Create a network'
complete -c cocoon -n '__cocoon_at "network" 1' -a inspect -d 'Show everything about one network'
complete -c cocoon -n '__cocoon_at "network" 1' -a list -d 'List networks'
complete -c cocoon -n '__cocoon_at "network" 1' -a rm -d 'Remove networks'
complete -c cocoon -n '__cocoon_at "network" 1' -a ls -d 'List networks'
complete -c cocoon -n '__cocoon_at "vm" 1' -a attach -d 'Join a command that runs in a VM'
complete -c cocoon -n '__cocoon_at "vm" 1' -a console -d 'Attach to a VMs console'
complete -c cocoon -n '__cocoon_at "vm" 1' -a cp -d 'Copy files into a VM or out of it'
complete -c cocoon -n '__cocoon_at "vm" 1' -a create -d 'Prepare a VM without starting it'
complete -c cocoon -n '__cocoon_at "vm" 1' -a debug -d 'Print the commands that a start would run'
complete -c cocoon -n '__cocoon_at "vm" 1' -a exec -d 'Run a command in a running VM'
complete -c cocoon -n '__cocoon_at "vm" 1' -a inspect -d 'Show everything about one VM'
complete -c cocoon -n '__cocoon_at "vm" 1' -a kill -d 'End VMs at once, or send their commands a signal'
complete -c cocoon -n '__cocoon_at "vm" 1' -a list -d 'List VMs'
complete -c cocoon -n '__cocoon_at "vm" 1' -a logs -d 'Show what a VM wrote to its console'
complete -c cocoon -n '__cocoon_at "vm" 1' -a port -d 'List the published ports of a VM'
complete -c cocoon -n '__cocoon_at "vm" 1' -a rm -d 'Remove VMs'
complete -c cocoon -n '__cocoon_at "vm" 1' -a run -d 'Create a VM and start it'
complete -c cocoon -n '__cocoon_at "vm" 1' -a shell -d 'Open a shell in a running VM'
complete -c cocoon -n '__cocoon_at "vm" 1' -a start -d 'Start VMs'
complete -c cocoon -n '__cocoon_at "vm" 1' -a stop -d 'Stop VMs'
complete -c cocoon -n '__cocoon_at "vm" 1' -a wait -d 'Wait for VMs to end and print their exit statuses'
complete -c cocoon -n '__cocoon_at "vm" 1' -a ls -d 'List VMs'
complete -c cocoon -n '__cocoon_at "vm" 1' -a ps -d 'List VMs'
complete -c cocoon -n '__cocoon_at "completion" 1' -f -a 'bash zsh fish'
complete -c cocoon -n '__cocoon_at "gc"' -l dry-run -d 'Only show what would be removed, and why'
complete -c cocoon -n '__cocoon_at "gc"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "doctor"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "inspect"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "inspect" 1' -f -a '(__cocoon_names vm)'
complete -c cocoon -n '__cocoon_at "version"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "image build"' -l name -d 'Name of the image' -x
complete -c cocoon -n '__cocoon_at "image build"' -l agent -d 'Install cocoons agent as a service of the images init'
complete -c cocoon -n '__cocoon_at "image build"' -l list -d 'Show the recipes that there are'
complete -c cocoon -n '__cocoon_at "image build"' -s q -l quiet -d 'Say nothing but the id'
complete -c cocoon -n '__cocoon_at "image build"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "image build" 1' -f -a '(__fish_complete_directories)'
complete -c cocoon -n '__cocoon_at "image export"' -s o -l file -d 'Where to write it' -r -F
complete -c cocoon -n '__cocoon_at "image export" 1' -f -a '(__cocoon_names image)'
complete -c cocoon -n '__cocoon_at "image import"' -l reference -d 'Which image of an archive that holds several' -x
complete -c cocoon -n '__cocoon_at "image import"' -l platform -d 'Which of several, or what it is' -x
complete -c cocoon -n '__cocoon_at "image import"' -l entrypoint -d 'For a root file system: what it runs' -x
complete -c cocoon -n '__cocoon_at "image import"' -l cmd -d 'For a root file system: what it runs by default' -x
complete -c cocoon -n '__cocoon_at "image import"' -s e -l env -d 'Set a variable; K alone takes this shells value' -x
complete -c cocoon -n '__cocoon_at "image import"' -l env-file -d 'Set the variables of a file, K=V lines' -r -F
complete -c cocoon -n '__cocoon_at "image import"' -s w -l workdir -d 'Directory in the guest to run in' -x
complete -c cocoon -n '__cocoon_at "image import"' -s u -l user -d 'Run as this user: name|uid[:group|gid]' -x
complete -c cocoon -n '__cocoon_at "image import"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "image import" 999' -F
complete -c cocoon -n '__cocoon_at "image inspect"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "image inspect" 1' -f -a '(__cocoon_names image)'
complete -c cocoon -n '__cocoon_at "image list"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "image list"' -s q -l quiet -d 'Print ids only'
complete -c cocoon -n '__cocoon_at "image pull"' -l platform -d 'Which of several to fetch' -x
complete -c cocoon -n '__cocoon_at "image pull"' -s f -l force -d 'Fetch again what is here already'
complete -c cocoon -n '__cocoon_at "image pull"' -l checksum -d 'Checksum of a disk, or URL of a file with it' -x
complete -c cocoon -n '__cocoon_at "image pull"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "image pull"' -s q -l quiet -d 'Print ids only'
complete -c cocoon -n '__cocoon_at "image rm"' -s f -l force -d 'Take the name away although VMs use the image'
complete -c cocoon -n '__cocoon_at "image rm"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "image rm" 999' -f -a '(__cocoon_names image)'
complete -c cocoon -n '__cocoon_at "image tag"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "image tag" 2' -f -a '(__cocoon_names image)'
complete -c cocoon -n '__cocoon_at "kernel add"' -l name -d 'Name of the kernel' -x
complete -c cocoon -n '__cocoon_at "kernel add"' -l modules -d 'Its modules, as in /lib/modules' -r -f -a '(__fish_complete_directories)'
complete -c cocoon -n '__cocoon_at "kernel add"' -l default -d 'Make it the default'
complete -c cocoon -n '__cocoon_at "kernel add"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "kernel add" 1' -F
complete -c cocoon -n '__cocoon_at "kernel default"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "kernel default" 1' -f -a '(__cocoon_names kernel)'
complete -c cocoon -n '__cocoon_at "kernel inspect"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "kernel inspect" 1' -f -a '(__cocoon_names kernel)'
complete -c cocoon -n '__cocoon_at "kernel list"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "kernel list"' -s q -l quiet -d 'Print ids only'
complete -c cocoon -n '__cocoon_at "kernel rm"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "kernel rm" 999' -f -a '(__cocoon_names kernel)'
complete -c cocoon -n '__cocoon_at "network create"' -l subnet -d 'IPv4 addresses; a free range when not given' -x
complete -c cocoon -n '__cocoon_at "network create"' -l mtu -d 'Largest packet, in bytes' -x
complete -c cocoon -n '__cocoon_at "network create"' -l isolated -d 'Its VMs do not reach one another'
complete -c cocoon -n '__cocoon_at "network create"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "network inspect"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "network inspect" 1' -f -a '(__cocoon_names network)'
complete -c cocoon -n '__cocoon_at "network list"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "network list"' -s q -l quiet -d 'Print ids only'
complete -c cocoon -n '__cocoon_at "network rm"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "network rm" 999' -f -a '(__cocoon_names network)'
complete -c cocoon -n '__cocoon_at "vm attach"' -s t -l tty -d 'The command has a terminal: use this one for it'
complete -c cocoon -n '__cocoon_at "vm attach"' -l no-stdin -d 'Only watch'
complete -c cocoon -n '__cocoon_at "vm attach" 2' -f -a '(__cocoon_names vm)'
complete -c cocoon -n '__cocoon_at "vm console"' -l escape-char -d 'Typed before a dot it leaves the console' -x
complete -c cocoon -n '__cocoon_at "vm console"' -l read-only -d 'Watch without writing'
complete -c cocoon -n '__cocoon_at "vm console"' -l resize -d 'Make the guests console as large as this terminal'
complete -c cocoon -n '__cocoon_at "vm console"' -l take -d 'Write instead of whoever writes now'
complete -c cocoon -n '__cocoon_at "vm console" 1' -f -a '(__cocoon_names vm)'
complete -c cocoon -n '__cocoon_at "vm cp"' -s L -l follow-link -d 'Copy what a link at SOURCE leads to'
complete -c cocoon -n '__cocoon_at "vm cp"' -s a -l archive -d 'Keep owners and modes, which is done anyway'
complete -c cocoon -n '__cocoon_at "vm cp"' -s q -l quiet -d 'Say nothing when it went well'
complete -c cocoon -n '__cocoon_at "vm cp" 2' -F
complete -c cocoon -n '__cocoon_at "vm create"' -l name -d 'Name of the VM; made from the images when not given' -x
complete -c cocoon -n '__cocoon_at "vm create"' -l cpu -d 'Virtual CPUs' -x
complete -c cocoon -n '__cocoon_at "vm create"' -s m -l memory -d 'Memory, at least 64M' -x
complete -c cocoon -n '__cocoon_at "vm create"' -l storage -d 'Writable root disk, at least 64M' -x
complete -c cocoon -n '__cocoon_at "vm create"' -l data-disk -d 'A disk of your own: size=SIZE, if wanted name=NAME, fstype=ext4|none, mount=PATH, directio=on|off' -x
complete -c cocoon -n '__cocoon_at "vm create"' -s p -l publish -d 'Have a port of the host lead to one of the guest' -x
complete -c cocoon -n '__cocoon_at "vm create"' -l allow-host -d 'Let the guest reach the hosts own services'
complete -c cocoon -n '__cocoon_at "vm create"' -l network -d 'Network of the first interface, and if given again of the next; cni for the hosts first' -r -f -a '(__cocoon_names network)'
complete -c cocoon -n '__cocoon_at "vm create"' -l bridge -d 'Put the interfaces on this bridge of the hosts instead' -x
complete -c cocoon -n '__cocoon_at "vm create"' -l nics -d 'Network interfaces; 0 for none' -x
complete -c cocoon -n '__cocoon_at "vm create"' -l nic-rate -d 'Bytes a second that each interface may receive, and as many send' -x
complete -c cocoon -n '__cocoon_at "vm create"' -l disk-rate -d 'Bytes a second that each disk may read and write' -x
complete -c cocoon -n '__cocoon_at "vm create"' -l disk-iops -d 'Requests a second that each disk may take' -x
complete -c cocoon -n '__cocoon_at "vm create"' -l queue-size -d 'Packets in a queue of an interface: 256, 512 or 1024' -x
complete -c cocoon -n '__cocoon_at "vm create"' -l hypervisor -d 'VMM to use; auto takes the best that this host can run' -r -f -a 'auto cloud-hypervisor firecracker qemu'
complete -c cocoon -n '__cocoon_at "vm create"' -l fc -d 'Short for --hypervisor firecracker'
complete -c cocoon -n '__cocoon_at "vm create"' -l windows -d 'The guest is Windows; no hypervisor of this version runs one yet'
complete -c cocoon -n '__cocoon_at "vm create"' -l kernel -d 'Kernel for an image that brings none' -r -f -a '(__cocoon_names kernel)'
complete -c cocoon -n '__cocoon_at "vm create"' -l hugepages -d 'Back the memory with huge pages'
complete -c cocoon -n '__cocoon_at "vm create"' -l insecure -d 'Start even where a required protection is not to be had'
complete -c cocoon -n '__cocoon_at "vm create"' -s v -l volume -d 'Show the guest a file or directory of this host as it is now, read-only' -r -F
complete -c cocoon -n '__cocoon_at "vm create"' -s e -l env -d 'Set a variable; K alone takes this shells value' -x
complete -c cocoon -n '__cocoon_at "vm create"' -l env-file -d 'Set the variables of a file, K=V lines' -r -F
complete -c cocoon -n '__cocoon_at "vm create"' -s w -l workdir -d 'Directory in the guest to run in' -x
complete -c cocoon -n '__cocoon_at "vm create"' -s u -l user -d 'Run as this user: name|uid[:group|gid]' -x
complete -c cocoon -n '__cocoon_at "vm create"' -l entrypoint -d 'Run this instead of the images entrypoint and command' -x
complete -c cocoon -n '__cocoon_at "vm create"' -l password -d 'Cloud images: password of --user (else root); - reads it from stdin' -x
complete -c cocoon -n '__cocoon_at "vm create"' -l ssh-key -d 'Cloud images: key that may log in' -r -F
complete -c cocoon -n '__cocoon_at "vm create"' -l user-data -d 'Cloud images: cloud-inits document, taken as it is' -r -F
complete -c cocoon -n '__cocoon_at "vm create"' -l hostname -d 'Host name of the guest; the VMs name when not given' -x
complete -c cocoon -n '__cocoon_at "vm create"' -l rm -d 'Remove the VM when it ends'
complete -c cocoon -n '__cocoon_at "vm create"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "vm create" 1' -f -a '(__cocoon_names image)'
complete -c cocoon -n '__cocoon_at "vm debug"' -l name -d 'Name of the VM; made from the images when not given' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -l cpu -d 'Virtual CPUs' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -s m -l memory -d 'Memory, at least 64M' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -l storage -d 'Writable root disk, at least 64M' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -l data-disk -d 'A disk of your own: size=SIZE, if wanted name=NAME, fstype=ext4|none, mount=PATH, directio=on|off' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -s p -l publish -d 'Have a port of the host lead to one of the guest' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -l allow-host -d 'Let the guest reach the hosts own services'
complete -c cocoon -n '__cocoon_at "vm debug"' -l network -d 'Network of the first interface, and if given again of the next; cni for the hosts first' -r -f -a '(__cocoon_names network)'
complete -c cocoon -n '__cocoon_at "vm debug"' -l bridge -d 'Put the interfaces on this bridge of the hosts instead' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -l nics -d 'Network interfaces; 0 for none' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -l nic-rate -d 'Bytes a second that each interface may receive, and as many send' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -l disk-rate -d 'Bytes a second that each disk may read and write' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -l disk-iops -d 'Requests a second that each disk may take' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -l queue-size -d 'Packets in a queue of an interface: 256, 512 or 1024' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -l hypervisor -d 'VMM to use; auto takes the best that this host can run' -r -f -a 'auto cloud-hypervisor firecracker qemu'
complete -c cocoon -n '__cocoon_at "vm debug"' -l fc -d 'Short for --hypervisor firecracker'
complete -c cocoon -n '__cocoon_at "vm debug"' -l windows -d 'The guest is Windows; no hypervisor of this version runs one yet'
complete -c cocoon -n '__cocoon_at "vm debug"' -l kernel -d 'Kernel for an image that brings none' -r -f -a '(__cocoon_names kernel)'
complete -c cocoon -n '__cocoon_at "vm debug"' -l hugepages -d 'Back the memory with huge pages'
complete -c cocoon -n '__cocoon_at "vm debug"' -l insecure -d 'Start even where a required protection is not to be had'
complete -c cocoon -n '__cocoon_at "vm debug"' -s v -l volume -d 'Show the guest a file or directory of this host as it is now, read-only' -r -F
complete -c cocoon -n '__cocoon_at "vm debug"' -s e -l env -d 'Set a variable; K alone takes this shells value' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -l env-file -d 'Set the variables of a file, K=V lines' -r -F
complete -c cocoon -n '__cocoon_at "vm debug"' -s w -l workdir -d 'Directory in the guest to run in' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -s u -l user -d 'Run as this user: name|uid[:group|gid]' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -l entrypoint -d 'Run this instead of the images entrypoint and command' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -l password -d 'Cloud images: password of --user (else root); - reads it from stdin' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -l ssh-key -d 'Cloud images: key that may log in' -r -F
complete -c cocoon -n '__cocoon_at "vm debug"' -l user-data -d 'Cloud images: cloud-inits document, taken as it is' -r -F
complete -c cocoon -n '__cocoon_at "vm debug"' -l hostname -d 'Host name of the guest; the VMs name when not given' -x
complete -c cocoon -n '__cocoon_at "vm debug"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "vm debug" 1' -f -a '(__cocoon_names image)'
complete -c cocoon -n '__cocoon_at "vm exec"' -s e -l env -d 'Set a variable; K alone takes this shells value' -x
complete -c cocoon -n '__cocoon_at "vm exec"' -l env-file -d 'Set the variables of a file, K=V lines' -r -F
complete -c cocoon -n '__cocoon_at "vm exec"' -s w -l workdir -d 'Directory in the guest to run in' -x
complete -c cocoon -n '__cocoon_at "vm exec"' -s u -l user -d 'Run as this user: name|uid[:group|gid]' -x
complete -c cocoon -n '__cocoon_at "vm exec"' -s i -l interactive -d 'Pass standard input on'
complete -c cocoon -n '__cocoon_at "vm exec"' -s t -l tty -d 'Give it a terminal'
complete -c cocoon -n '__cocoon_at "vm exec"' -s d -l detach -d 'Leave it running and print the number of its session'
complete -c cocoon -n '__cocoon_at "vm exec"' -l timeout -d 'End it after this time, with status 124' -x
complete -c cocoon -n '__cocoon_at "vm exec"' -l list -d 'List the commands of the VM instead'
complete -c cocoon -n '__cocoon_at "vm exec"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "vm exec" 1' -f -a '(__cocoon_names vm)'
complete -c cocoon -n '__cocoon_at "vm inspect"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "vm inspect" 1' -f -a '(__cocoon_names vm)'
complete -c cocoon -n '__cocoon_at "vm kill"' -s s -l signal -d 'KILL ends the VM; any other is sent to its command' -x
complete -c cocoon -n '__cocoon_at "vm kill"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "vm kill" 999' -f -a '(__cocoon_names vm)'
complete -c cocoon -n '__cocoon_at "vm list"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "vm list"' -s q -l quiet -d 'Print ids only'
complete -c cocoon -n '__cocoon_at "vm logs"' -s f -l follow -d 'Go on until the VM ends'
complete -c cocoon -n '__cocoon_at "vm logs"' -s n -l tail -d 'Only the last lines' -x
complete -c cocoon -n '__cocoon_at "vm logs"' -l vmm -d 'The log of the VMM instead of the guests console'
complete -c cocoon -n '__cocoon_at "vm logs"' -l raw -d 'Bytes as they are, also on a terminal'
complete -c cocoon -n '__cocoon_at "vm logs" 1' -f -a '(__cocoon_names vm)'
complete -c cocoon -n '__cocoon_at "vm port"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "vm port" 1' -f -a '(__cocoon_names vm)'
complete -c cocoon -n '__cocoon_at "vm rm"' -s f -l force -d 'Stop running VMs first, at once'
complete -c cocoon -n '__cocoon_at "vm rm"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "vm rm" 999' -f -a '(__cocoon_names vm)'
complete -c cocoon -n '__cocoon_at "vm run"' -l name -d 'Name of the VM; made from the images when not given' -x
complete -c cocoon -n '__cocoon_at "vm run"' -l cpu -d 'Virtual CPUs' -x
complete -c cocoon -n '__cocoon_at "vm run"' -s m -l memory -d 'Memory, at least 64M' -x
complete -c cocoon -n '__cocoon_at "vm run"' -l storage -d 'Writable root disk, at least 64M' -x
complete -c cocoon -n '__cocoon_at "vm run"' -l data-disk -d 'A disk of your own: size=SIZE, if wanted name=NAME, fstype=ext4|none, mount=PATH, directio=on|off' -x
complete -c cocoon -n '__cocoon_at "vm run"' -s p -l publish -d 'Have a port of the host lead to one of the guest' -x
complete -c cocoon -n '__cocoon_at "vm run"' -l allow-host -d 'Let the guest reach the hosts own services'
complete -c cocoon -n '__cocoon_at "vm run"' -l network -d 'Network of the first interface, and if given again of the next; cni for the hosts first' -r -f -a '(__cocoon_names network)'
complete -c cocoon -n '__cocoon_at "vm run"' -l bridge -d 'Put the interfaces on this bridge of the hosts instead' -x
complete -c cocoon -n '__cocoon_at "vm run"' -l nics -d 'Network interfaces; 0 for none' -x
complete -c cocoon -n '__cocoon_at "vm run"' -l nic-rate -d 'Bytes a second that each interface may receive, and as many send' -x
complete -c cocoon -n '__cocoon_at "vm run"' -l disk-rate -d 'Bytes a second that each disk may read and write' -x
complete -c cocoon -n '__cocoon_at "vm run"' -l disk-iops -d 'Requests a second that each disk may take' -x
complete -c cocoon -n '__cocoon_at "vm run"' -l queue-size -d 'Packets in a queue of an interface: 256, 512 or 1024' -x
complete -c cocoon -n '__cocoon_at "vm run"' -l hypervisor -d 'VMM to use; auto takes the best that this host can run' -r -f -a 'auto cloud-hypervisor firecracker qemu'
complete -c cocoon -n '__cocoon_at "vm run"' -l fc -d 'Short for --hypervisor firecracker'
complete -c cocoon -n '__cocoon_at "vm run"' -l windows -d 'The guest is Windows; no hypervisor of this version runs one yet'
complete -c cocoon -n '__cocoon_at "vm run"' -l kernel -d 'Kernel for an image that brings none' -r -f -a '(__cocoon_names kernel)'
complete -c cocoon -n '__cocoon_at "vm run"' -l hugepages -d 'Back the memory with huge pages'
complete -c cocoon -n '__cocoon_at "vm run"' -l insecure -d 'Start even where a required protection is not to be had'
complete -c cocoon -n '__cocoon_at "vm run"' -s v -l volume -d 'Show the guest a file or directory of this host as it is now, read-only' -r -F
complete -c cocoon -n '__cocoon_at "vm run"' -s e -l env -d 'Set a variable; K alone takes this shells value' -x
complete -c cocoon -n '__cocoon_at "vm run"' -l env-file -d 'Set the variables of a file, K=V lines' -r -F
complete -c cocoon -n '__cocoon_at "vm run"' -s w -l workdir -d 'Directory in the guest to run in' -x
complete -c cocoon -n '__cocoon_at "vm run"' -s u -l user -d 'Run as this user: name|uid[:group|gid]' -x
complete -c cocoon -n '__cocoon_at "vm run"' -l entrypoint -d 'Run this instead of the images entrypoint and command' -x
complete -c cocoon -n '__cocoon_at "vm run"' -l password -d 'Cloud images: password of --user (else root); - reads it from stdin' -x
complete -c cocoon -n '__cocoon_at "vm run"' -l ssh-key -d 'Cloud images: key that may log in' -r -F
complete -c cocoon -n '__cocoon_at "vm run"' -l user-data -d 'Cloud images: cloud-inits document, taken as it is' -r -F
complete -c cocoon -n '__cocoon_at "vm run"' -l hostname -d 'Host name of the guest; the VMs name when not given' -x
complete -c cocoon -n '__cocoon_at "vm run"' -s i -l interactive -d 'Pass standard input on'
complete -c cocoon -n '__cocoon_at "vm run"' -s t -l tty -d 'Give it a terminal'
complete -c cocoon -n '__cocoon_at "vm run"' -s d -l detach -d 'Do not stay, although there is a command; it has the VMs console then'
complete -c cocoon -n '__cocoon_at "vm run"' -l foreground -d 'Stay until the VM ends; ending this command ends the VM'
complete -c cocoon -n '__cocoon_at "vm run"' -l rm -d 'Remove the VM when it ends'
complete -c cocoon -n '__cocoon_at "vm run"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "vm run" 1' -f -a '(__cocoon_names image)'
complete -c cocoon -n '__cocoon_at "vm shell"' -s e -l env -d 'Set a variable; K alone takes this shells value' -x
complete -c cocoon -n '__cocoon_at "vm shell"' -l env-file -d 'Set the variables of a file, K=V lines' -r -F
complete -c cocoon -n '__cocoon_at "vm shell"' -s w -l workdir -d 'Directory in the guest to run in' -x
complete -c cocoon -n '__cocoon_at "vm shell"' -s u -l user -d 'Run as this user: name|uid[:group|gid]' -x
complete -c cocoon -n '__cocoon_at "vm shell" 1' -f -a '(__cocoon_names vm)'
complete -c cocoon -n '__cocoon_at "vm start"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "vm start" 999' -f -a '(__cocoon_names vm)'
complete -c cocoon -n '__cocoon_at "vm stop"' -s f -l force -d 'End the VMM at once, without asking the guest'
complete -c cocoon -n '__cocoon_at "vm stop"' -l timeout -d 'How long the guest may take' -x
complete -c cocoon -n '__cocoon_at "vm stop"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "vm stop" 999' -f -a '(__cocoon_names vm)'
complete -c cocoon -n '__cocoon_at "vm wait"' -s o -l output -d 'How to print the result' -r -f -a 'table json'
complete -c cocoon -n '__cocoon_at "vm wait" 999' -f -a '(__cocoon_names vm)'
complete -c cocoon -l config -d 'Settings file (TOML)' -r -F
complete -c cocoon -l root-dir -d 'Where state lives' -r -f -a '(__fish_complete_directories)'
complete -c cocoon -l run-dir -d 'Sockets and locks' -r -f -a '(__fish_complete_directories)'
complete -c cocoon -l log-dir -d 'Console and VMM logs' -r -f -a '(__fish_complete_directories)'
complete -c cocoon -l dns -d 'Name servers that guests are given' -x
complete -c cocoon -l verbose -d 'Say on stderr what is being done'
complete -c cocoon -s h -l help -d 'Show help'
