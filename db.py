import sys; sys.path.insert(0,'/work/main/tests'); import zoo, torch
from timm.layers.drop import drop_block_2d
from torchvision.ops import drop_block2d
torch.manual_seed(0)
for H,bs,gs in((14,7,1.),(7,7,1.),(14,5,.25),(7,3,1.),(56,7,1.)):
    x=torch.ones(2000,1,H,H)
    for p in(.05,.1,.2):
        a=(drop_block_2d(x,p,bs,gs)==0).float().mean().item(); b=(drop_block2d(x,p,bs)==0).float().mean().item()
        print(H,bs,gs,p,'timm',round(a,4),'expected',p*gs,'torchvision',round(b,4))
