# Into user mode and back. Whatever ends user mode (a call, a trap, an upcall) comes out of
# ppvmm_enter_user as a return, with the user's registers in a frame on the exit stack.

.section .bss.user, "aw", @nobits
    .balign 16
# Xen switches to this stack when user mode ends. It holds one frame.
ppvmm_exit_stack:
    .skip 1024
.global ppvmm_exit_stack_top
ppvmm_exit_stack_top:
# The kernel part's stack pointer while user mode runs.
kernel_rsp:
    .skip 8

.section .text.user, "ax"
# rdi = registers to start with (traps::Frame). Returns the address of those it ended with.
.global ppvmm_enter_user
ppvmm_enter_user:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + kernel_rsp], rsp
    # What the iret hypercall takes, upwards: rax, r11, rcx, flags, rip, cs, rflags, rsp, ss.
    push qword ptr [rdi + 168]
    push qword ptr [rdi + 160]
    push qword ptr [rdi + 152]
    push qword ptr [rdi + 144]
    push qword ptr [rdi + 136]
    push 0
    push qword ptr [rdi + 24]
    push qword ptr [rdi + 64]
    push qword ptr [rdi + 32]
    mov rsi, [rdi + 8]
    mov rdx, [rdi + 16]
    mov r8, [rdi + 40]
    mov r9, [rdi + 48]
    mov r10, [rdi + 56]
    mov rbx, [rdi + 72]
    mov rbp, [rdi + 80]
    mov r12, [rdi + 88]
    mov r13, [rdi + 96]
    mov r14, [rdi + 104]
    mov r15, [rdi + 112]
    mov rdi, [rdi]
    mov eax, 23
    syscall
    ud2

# A syscall of user mode. Stack, upwards: rcx, r11, rip, cs, rflags, rsp, ss. Events are masked.
.global ppvmm_user_call
ppvmm_user_call:
    pop rcx
    pop r11
    push 0
    push 256
    jmp user_exit

# An upcall in user mode: the same stack. Events are masked.
user_upcall:
    pop rcx
    pop r11
    push 0
    push 257
    jmp user_exit

# Stack, upwards: vector, error, rip, cs, rflags, rsp, ss.
user_exit:
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
    mov rax, rsp
    mov rsp, [rip + kernel_rsp]
    cld
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
