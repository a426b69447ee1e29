@echo off
rem The native script: puts the files into .\data, by CM's orders in the environment or by hand.
setlocal DisableDelayedExpansion
set "PYTHONSAFEPATH=1"
set "PYTHONPATH=%~dp0;%PYTHONPATH%"
rem Delayed expansion: what the orders say is not read again by cmd, which would act on %%20 and on &.
setlocal EnableDelayedExpansion
if not defined CM_IMAGENET_AUX_PYTHON set "CM_IMAGENET_AUX_PYTHON=python"
if not defined CM_IMAGENET_AUX_SOURCE set "CM_IMAGENET_AUX_SOURCE=!CM_WGET_URL!"
"!CM_IMAGENET_AUX_PYTHON!" -m imagenet_aux fetch "--checksum=!CM_IMAGENET_AUX_CHECKSUM!" "--result=!CM_IMAGENET_AUX_OUTCOME!" !CM_IMAGENET_AUX_REPLACE! -- "!CM_IMAGENET_AUX_SOURCE!"
rem Where the outcome is to be written down, postprocess says how it went, a kill included.
if defined CM_IMAGENET_AUX_OUTCOME exit /b 0
exit /b !ERRORLEVEL!
