# Entries of a unikernel. Everything here runs before, or beside, Rust's rules: see entry.rs.

# ---- Notes by which Xen and QEMU find their way in (elfnote.h) -----------------------------
.macro XEN_NOTE type
    .long 4
    .long 9f - 8f
    .long \type
    .asciz "Xen"
8:
.endm
.macro XEN_NOTE_END
9:
    .balign 4
.endm

.section .note.Xen, "a", @note
    .balign 4
    XEN_NOTE 6      # GUEST_OS
    .asciz "ppvmm"
    XEN_NOTE_END
    XEN_NOTE 5      # XEN_VERSION
    .asciz "xen-3.0"
    XEN_NOTE_END
    XEN_NOTE 8      # LOADER
    .asciz "generic"
    XEN_NOTE_END
    XEN_NOTE 9      # PAE_MODE
    .asciz "yes"
    XEN_NOTE_END
    XEN_NOTE 10     # FEATURES
    .asciz "!writable_page_tables|pae_pgdir_above_4gb"
    XEN_NOTE_END
    XEN_NOTE 3      # VIRT_BASE
    .quad 0
    XEN_NOTE_END
    XEN_NOTE 4      # PADDR_OFFSET
    .quad 0
    XEN_NOTE_END
    XEN_NOTE 1      # ENTRY
    .quad _start_pv
    XEN_NOTE_END
    XEN_NOTE 18     # PHYS32_ENTRY: eight bytes, QEMU reads a size_t
    .quad _start_pvh
    XEN_NOTE_END

# ---- Pages with a meaning ------------------------------------------------------------------
.section .bss.pages, "aw", @nobits
    .balign 4096
.global ppvmm_shared_info
ppvmm_shared_info:
    .skip 4096
# Pages of a PVH guest: Xen's hypercall stubs, and its grant table.
.global ppvmm_guest_pages
ppvmm_guest_pages:
    .skip 8192
.global ppvmm_stack_guard
ppvmm_stack_guard:
    .skip 4096
    .skip 262144
.global ppvmm_stack_top
ppvmm_stack_top:
pvh_l4:
    .skip 4096
pvh_l3:
    .skip 4096
pvh_l2:
    .skip 16384

# ---- PV entry: rsi = start_info, rdx = rung ------------------------------------------------
.section .bss.start, "aw", @nobits
    .balign 8
saved_start_info:
    .skip 8
saved_rung:
    .skip 8
# 1: a life begins; a trap now belongs to the former life, begin again. 2: begun again. 0: begun.
.global ppvmm_beginning
ppvmm_beginning:
    .skip 8

.section .text.entry, "ax"
.global _start_pv
_start_pv:
    mov [rip + saved_start_info], rsi
    mov [rip + saved_rung], rdx
    mov qword ptr [rip + ppvmm_beginning], 1
start_saved:
    cld
    # A later life may begin with upcalls enabled: mask them before anything else. In a first
    # life they are masked, and this byte belongs to a page of zeros.
    test rdx, rdx
    jz 1f
    mov byte ptr [rip + ppvmm_shared_info + 1], 1
1:  mov qword ptr [rip + ppvmm_block_rsp], 0
    lea rsp, [rip + ppvmm_stack_top]
    xor ebp, ebp
    mov rdi, rsi
    mov rsi, rdx
    call ppvmm_pv_entry
    ud2

# rdi = rung: the life that ended here is resumed, so the next one begins. Xen knows its traps.
.global ppvmm_begin_again
ppvmm_begin_again:
    mov [rip + saved_rung], rdi
# A trap that Xen could not deliver to the former life, because its stack was unusable, stays with
# the vCPU, and reaches the next one.
trap_of_former_life:
    mov qword ptr [rip + ppvmm_beginning], 2
    mov rsi, [rip + saved_start_info]
    mov rdx, [rip + saved_rung]
    jmp start_saved

# rdi = function, rsi = its argument: calls it on an empty stack.
.global ppvmm_fresh_stack
ppvmm_fresh_stack:
    lea rsp, [rip + ppvmm_stack_top]
    xor ebp, ebp
    mov rax, rdi
    mov rdi, rsi
    call rax
    ud2

# ---- Waiting and upcalls -------------------------------------------------------------------
.section .bss.upcall, "aw", @nobits
    .balign 8
# While the domain waits: its stack pointer in ppvmm_block. Else 0.
ppvmm_block_rsp:
    .skip 8

.section .text.upcall, "ax"
# SCHEDOP_block enables upcalls and waits. The upcall handler drops its frame and continues at 2:.
.global ppvmm_block
ppvmm_block:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + ppvmm_block_rsp], rsp
    mov eax, 29
    mov edi, 1
    xor esi, esi
    syscall
2:  mov byte ptr [rip + ppvmm_shared_info + 1], 1
    mov qword ptr [rip + ppvmm_block_rsp], 0
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

# Stack, upwards: rcx, r11, rip, cs, rflags, rsp, ss. Xen has masked upcalls.
.global ppvmm_upcall
ppvmm_upcall:
    push rax
    mov rax, [rip + ppvmm_block_rsp]
    test rax, rax
    jz 3f
    mov rsp, rax
    cld
    jmp 2b
    # In the middle of a long hypercall: call back, then let Xen go on with it.
3:  push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push rbp
    mov rbp, rsp
    and rsp, -16
    cld
    call ppvmm_during
    mov rsp, rbp
    pop rbp
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rax
    pop rcx
    pop r11
    push 0          # flags: return by iret, restoring rcx and r11
    push rcx
    push r11
    push rax
    mov eax, 23
    syscall
    ud2

# Xen could not restore a segment: cannot happen with flat segments.
.global ppvmm_failsafe
ppvmm_failsafe:
    ud2

# ---- Traps ---------------------------------------------------------------------------------
# Xen pushes rcx, r11, [error code], rip, cs, rflags, rsp, ss; a bare processor no rcx and r11.
.macro TRAP vector, has_error
pv_trap_\vector:
    pop rcx
    pop r11
bare_trap_\vector:
    .if \has_error == 0
    push 0
    .endif
    push \vector
    jmp trap_common
.endm

.altmacro
.macro EACH_TRAP vector
    .set has_code, (\vector == 8) || ((\vector >= 10) && (\vector <= 14)) || (\vector == 17)
    .set has_code, has_code || (\vector == 21) || (\vector == 29) || (\vector == 30)
    .if has_code
    TRAP \vector, 1
    .else
    TRAP \vector, 0
    .endif
.endm
.set vector, 0
.rept 32
    EACH_TRAP %vector
    .set vector, vector + 1
.endr

trap_common:
    # Stack, upwards: vector, error, rip. The first instructions still have their registers.
    push rax
    lea rax, [rip + _start_pv]
    cmp rax, [rsp + 24]
    ja 1f
    lea rax, [rip + start_saved]
    cmp rax, [rsp + 24]
    ja _start_pv
1:  pop rax
    cmp qword ptr [rip + ppvmm_beginning], 1
    je trap_of_former_life
    push r15
    push r14
    push r13
    push r12
    push rbp
    push rbx
    push r11
    push r10
    push r9
    push r8
    push rax
    push rcx
    push rdx
    push rsi
    push rdi
    mov rdi, rsp
    mov rbp, rsp
    and rsp, -16
    cld
    call ppvmm_trap
    ud2

.macro EACH_PV_ADDRESS vector
    .quad pv_trap_\vector
.endm
.macro EACH_BARE_ADDRESS vector
    .quad bare_trap_\vector
.endm
.section .rodata.traps, "a"
    .balign 8
.global ppvmm_pv_traps
ppvmm_pv_traps:
.set vector, 0
.rept 32
    EACH_PV_ADDRESS %vector
    .set vector, vector + 1
.endr
.global ppvmm_bare_traps
ppvmm_bare_traps:
.set vector, 0
.rept 32
    EACH_BARE_ADDRESS %vector
    .set vector, vector + 1
.endr
.noaltmacro

# ---- PVH entry: 32 bits, no paging, ebx = hvm_start_info -----------------------------------
.section .text.entry, "ax"
.code32
.global _start_pvh
_start_pvh:
    cld
    mov esp, offset ppvmm_stack_top
    # Identity-map the first 4 GiB by 2 MiB pages.
    mov eax, offset pvh_l3 + 3
    mov [pvh_l4], eax
    mov edi, offset pvh_l3
    mov eax, offset pvh_l2 + 3
    mov ecx, 4
4:  mov [edi], eax
    add eax, 4096
    add edi, 8
    dec ecx
    jnz 4b
    mov edi, offset pvh_l2
    mov eax, 0x83
    mov ecx, 2048
5:  mov [edi], eax
    add eax, 0x200000
    add edi, 8
    dec ecx
    jnz 5b
    mov eax, offset pvh_l4
    mov cr3, eax
    mov eax, cr4
    or eax, 0x20            # PAE
    mov cr4, eax
    mov ecx, 0xc0000080     # EFER
    rdmsr
    or eax, 0x100           # LME
    wrmsr
    mov eax, cr0
    or eax, 0x80000001      # PG, PE
    mov cr0, eax
    lgdt [pvh_gdt_pointer]
    push 8
    mov eax, offset pvh_long_mode
    push eax
    retf
.code64
pvh_long_mode:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    lea rsp, [rip + ppvmm_stack_top]
    xor ebp, ebp
    mov edi, ebx
    call ppvmm_pvh_entry
    ud2

.section .rodata.gdt, "a"
    .balign 8
pvh_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # code, 64 bits
    .quad 0x00cf93000000ffff    # data
pvh_gdt_pointer:
    .word 23
    .long pvh_gdt
