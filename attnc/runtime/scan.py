import torch
def causal_scan(x, y, z, row_logs=None, key_logs=None, state=None, state_log=None, *, heads=None, reverse=False, chunk=64, return_state=False):
    H = heads
    r=lambda t: t if t.shape[1]==H else t.repeat_interleave(H//t.shape[1],1)
    x,y,z=r(x),r(y),r(z)
    N=x.shape[2]
    A=torch.zeros(1,1,N,dtype=torch.float64) if row_logs is None else row_logs
    G=torch.zeros(1,1,N,dtype=torch.float64) if key_logs is None else key_logs
    low=torch.tril(torch.ones(N,N,dtype=torch.bool))
    w=torch.where(low,A.unsqueeze(-1)+G.unsqueeze(-2),-torch.inf).exp().to(x.dtype)
    out=((x@y.transpose(-1,-2))*w)@z
    r0=torch.zeros(1,1,dtype=torch.float64) if state_log is None else state_log
    r1=torch.maximum(r0,G.amax(-1)) if state is not None else G.amax(-1)
    S=(y*(G-r1[...,None]).exp()[...,None].to(y.dtype)).transpose(-1,-2)@z
    if state is not None:
        out=out+(x@state.to(x.dtype))*(A+r0[...,None]).exp()[...,None].to(x.dtype)
        S=S+state*(r0-r1).exp()[...,None,None].to(state.dtype)
    return out, S, r1
